"""The published weights of the networks that metrics look through: PyTorch's files, which a user brings.

Nothing is downloaded. A folder holds them by the names that they were published under; PyTorch's own programs keep them
in `~/.cache/torch/hub/checkpoints`.
"""

import hashlib
import os
import sys
from typing import NamedTuple

from palette_ms.data.files import expand
from palette_ms.errors import UserError
from palette_ms.torch_weights.files import read_tensors

FOLDER = expand(os.path.join(os.environ.get("TORCH_HOME") or "~/.cache/torch", "hub", "checkpoints"))


class Published(NamedTuple):
    """A file.

    Attributes:
        name: of the file.
        url: where it is, without the name.
        sha256: the first digits of its checksum.
    """

    name: str
    url: str
    sha256: str


_TORCHVISION = "https://download.pytorch.org/models/"
_LPIPS = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/"
PUBLISHED = {
    "inception": Published("pt_inception-2015-12-05-6726825d.pth",
                           "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/", "6726825d"),
    "resnet50": Published("resnet50-0676ba61.pth", _TORCHVISION, "0676ba61"),
    "alex": Published("alexnet-owt-7be5be79.pth", _TORCHVISION, "7be5be79"),
    "vgg": Published("vgg16-397923af.pth", _TORCHVISION, "397923af"),
    "lpips_alex": Published("alex.pth", _LPIPS, "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    "lpips_vgg": Published("vgg.pth", _LPIPS, "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
}


def open_weights(names, folder=None):
    """The tensors of published files.

    Args:
        names: of `PUBLISHED`.
        folder: where they lie; None: `FOLDER`.

    Returns: (list of dicts of arrays by name, dict of their SHA-256 by file name, path of the first). Where a checksum
        is not the published one, a line on stderr says so.

    Raises:
        UserError: a file is not there, which tells where it is to be had, or cannot be read.
    """
    folder = FOLDER if folder is None else expand(folder)
    files = [PUBLISHED[name] for name in names]
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {' and no '.join(file.name for file in missing)}: get "
                        f"{' and '.join(f'{file.url}{file.name} (SHA-256 {file.sha256[:8]}…)' for file in missing)}, "
                        "and name the folder as --weights")
    digests = {}
    for file in files:
        digest = hashlib.sha256()
        with open(folder / file.name, "rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
        digests[file.name] = digest.hexdigest()
        if not digests[file.name].startswith(file.sha256):
            print(f"warning: {folder / file.name} is not the published file: its SHA-256 begins with "
                  f"{digests[file.name][:8]}, not {file.sha256[:8]}; figures by it compare with no other ones",
                  file=sys.stderr)
    return [read_tensors(folder / file.name) for file in files], digests, folder / files[0].name
