"""How the pictures of a model are read, computed with and written."""

import numpy as np
from PIL import Image

from palette_ms.data.images import load_image, save_atomically, to_float, to_uint8


class Photo:
    def __eq__(self, other):
        return isinstance(other, Photo)

    def read(self, source, name=None, enough=None):
        return load_image(source, name, enough)

    def to_float(self, array):
        return to_float(array)

    def from_float(self, y):
        return to_uint8(y)

    def resize(self, array, height, width, filter=Image.BICUBIC):
        return np.asarray(Image.fromarray(array).resize((width, height), filter))

    def image(self, array):
        return Image.fromarray(array)

    def save(self, result, path):
        path = path.with_name(path.name + ".png")
        save_atomically(result, path)
        return path


def forms(data):
    return Photo(), Photo()
