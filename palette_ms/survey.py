"""python -m palette_ms.survey: ask people which picture is a camera's, and turn their answers into a fool rate."""

import argparse

from palette_ms import errors
from palette_ms.data.files import expand
from palette_ms.errors import UserError
from palette_ms.evaluation.page import check_page
from palette_ms.evaluation.report import match
from palette_ms.evaluation.survey import fool_rate, write_survey


def main():
    parser = argparse.ArgumentParser(
        prog="python -m palette_ms.survey", description=__doc__,
        epilog="First a page is made of two folders, which anyone can open; it saves a person's answers as a file. "
               "Then --answers takes the files of all.")
    parser.add_argument("--reference", type=expand, help="folder of the originals")
    parser.add_argument("--restored", type=expand, help="folder of what was made of them, by the same names")
    parser.add_argument("--output", type=expand, metavar="FILE.html", help="the page")
    parser.add_argument("--seconds", type=float, default=3, help="how long a pair is shown (default: %(default)s)")
    parser.add_argument("--pairs", type=int, help="how many, drawn (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="decides which")
    parser.add_argument("--answers", type=expand, nargs="+", metavar="FILE.json", help="what the page saved")
    args = parser.parse_args()
    if args.answers:
        if args.reference or args.restored or args.output:
            raise UserError("--answers stands alone: the page is made by a call of its own")
        tell(fool_rate(args.answers))
        return
    if not (args.reference and args.restored and args.output):
        raise UserError("a page needs --reference, --restored and --output FILE.html; --answers counts what it saved")
    if not 0 < args.seconds < float("inf") or args.seed < 0 or (args.pairs is not None and args.pairs < 1):
        raise UserError("--seconds must be above 0, --pairs at least 1, --seed at least 0")
    check_page(args.output, "survey.html")
    number = write_survey(args.output, match(args.reference, args.restored), args.seconds, args.pairs, args.seed)
    print(f"{args.output}: {number} pairs, {args.seconds:g} seconds each")


def tell(found):
    """A `FoolRate`, for a terminal."""
    print(f"fool rate {found.rate:.1%}, 95 % confidence {found.low:.1%} to {found.high:.1%}: {found.answers} answers, "
          f"people: {len(found.people)}")
    for person, (rate, answers) in found.people.items():
        print(f"    {person}: {rate:.1%} of {answers}")
    named = sorted(found.pictures, key=lambda name: (-found.pictures[name], name))
    for title, names in (("most often taken for a camera's", named[:5]), ("most rarely", named[:-6:-1])):
        print(f"{title}: {', '.join(f'{name} ({found.pictures[name]:.0%})' for name in names)}")


if __name__ == "__main__":
    errors.run(main)
