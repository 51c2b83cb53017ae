"""python -m palette_ms.encode: captioned pictures into MindRecord, their captions told by a frozen T5 once."""

import argparse
import itertools

from palette_ms import errors, runtime
from palette_ms.data.captions import METADATA, Captions
from palette_ms.errors import UserError
from palette_ms.pack import add_output, pack

_BLOCK = 16  # captions that are encoded together


class Descriptions:
    """What stands beside captioned pictures in MindRecord: `caption`, `tokens` (float16 (count, width), as bytes),
    `count`, and `encoder`, the fingerprint of the frozen T5.

    Args:
        captions: `palette_ms.data.captions.Captions`.
        encoder: `palette_ms.text.encoder.TextEncoder`.
        length: tokens of a caption, at most.
    """

    columns = {"caption": {"type": "string"}, "tokens": {"type": "bytes"}, "count": {"type": "int32"},
               "encoder": {"type": "string"}}

    def __init__(self, captions, encoder, length):
        self.captions, self.encoder, self.length = captions, encoder, length

    def row(self, name):
        """What a picture's path tells. Raises UserError: it has no caption."""
        return {"caption": self.captions.of(name)}

    def finished(self, rows):
        """The rows with what the encoder says."""
        rows = iter(rows)
        for some in iter(lambda: list(itertools.islice(rows, _BLOCK)), []):
            for row, text in zip(some, self.encoder([row["caption"] for row in some], self.length)):
                yield {**row, "tokens": text.tokens.tobytes(), "count": len(text.tokens), "encoder": text.encoder}


def main():
    parser = argparse.ArgumentParser(
        prog="python -m palette_ms.encode", description=__doc__,
        epilog=f"Captions are NAME.txt beside each picture, or lines {{\"file_name\": …, \"text\": …}} of {METADATA} "
               "in the folder. Training takes OUTPUT as data.path, and needs no T5. Pictures that cannot be read, or "
               "have no caption, are left out and counted. Do not rename what is written.")
    parser.add_argument("source", help="a folder of pictures, or a list of them (.txt)")
    parser.add_argument("--encoder", required=True, metavar="FOLDER",
                        help="a T5's config.json, weights (safetensors or pytorch_model.bin) and tokenizer.json or "
                             "spiece.model, as Hugging Face has them")
    parser.add_argument("--captions", metavar="FILE", help=f"lines as of {METADATA}, where it is another file")
    parser.add_argument("--length", type=int, default=256, metavar="N",
                        help="tokens of a caption, at most; longer ones are cut (default 256, Imagen's)")
    parser.add_argument("--device", default="auto", help="auto (default), Ascend, GPU or CPU")
    add_output(parser)
    args = parser.parse_args()
    if args.length < 2:
        raise UserError("--length must be at least 2")
    captions = Captions(args.source, args.captions)
    runtime.setup(args.device)
    import mindspore as ms

    from palette_ms.text.encoder import TextEncoder

    encoder = TextEncoder(args.encoder, getattr(ms, runtime.sampling_precision("auto")))
    pack(args.source, args.output, args.shards, args.overwrite, describe=Descriptions(captions, encoder, args.length))
    print(args.output)


if __name__ == "__main__":
    errors.run(main)
