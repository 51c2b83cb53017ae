"""python -m palette_ms.modelarts submit: rent cards for a training by the hour, and watch it."""

import argparse
import sys

from palette_ms import errors
from palette_ms.modelarts.job import connect, create_request, follow, load_job, request_json, submit


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.modelarts", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("submit", help="submit a job, then follow its state and log")
    verb.add_argument("--config", required=True, help="the job's YAML, see scripts/modelarts/job.yaml")
    verb.add_argument("--dry-run", action="store_true", help="print the request and send nothing")
    verb.add_argument("--poll", type=float, default=30, help="seconds between looks at the job (default: 30)")
    args = parser.parse_args()
    job = load_job(args.config)
    request = create_request(job)
    if args.dry_run:
        print(request_json(request))
        return
    client = connect(job)
    job_id = submit(client, request)
    print(f"submitted {job.name} as {job_id}; Ctrl-C stops following, not the job", file=sys.stderr)
    phase, failed = follow(client, job_id, args.poll)
    if phase != "Completed":
        sys.exit("\n".join([f"the job ended as {phase}", *failed]))


if __name__ == "__main__":
    errors.run(main)
