"""Pictures made from numbers: like photographs, scanned pages and drawings; and copies of them."""

import io

import numpy as np
from PIL import Image, ImageDraw

LETTERS = list("abcdefgh ijklmno prst")


def photograph(generator: np.random.Generator, width: int = 160, height: int = 120) -> Image.Image:
    """Noise whose power falls with the square of the frequency, as that of photographs does.

    Source: David J. Field, Relations between the statistics of natural images ... (1987).
    """
    down = np.fft.fftfreq(height)[:, None] * height
    across = np.fft.fftfreq(width)[None] * width
    frequency = np.hypot(down, across)
    frequency[0, 0] = 1
    light = generator.normal(size=(2, height, width))
    channels = []
    for _ in range(3):
        own = generator.normal(size=(2, height, width))
        real, imaginary = light + 0.3 * own
        values = np.fft.ifft2((real + 1j * imaginary) / frequency).real
        channels.append((values - values.mean()) / values.std() * 50 + 128)
    return Image.fromarray(np.clip(np.stack(channels, 2), 0, 255).astype(np.uint8))


def page(generator: np.random.Generator) -> Image.Image:
    """Lines of text on white, all pages laid out alike."""
    image = Image.new("RGB", (240, 320), "white")
    drawing = ImageDraw.Draw(image)
    for top in range(20, 300, 12):
        line = "".join(generator.choice(LETTERS, generator.integers(20, 34)))
        drawing.text((20, top), line, fill="black")
    return image


def drawing(generator: np.random.Generator) -> Image.Image:
    """A few ellipses and rectangles on one colour."""
    colours = generator.integers(0, 256, (5, 3)).tolist()
    image = Image.new("RGB", (128, 128), tuple(colours[0]))
    canvas = ImageDraw.Draw(image)
    for number, colour in enumerate(colours[1:]):
        left, top = generator.integers(5, 80, 2).tolist()
        width, height = generator.integers(10, 45, 2).tolist()
        draw = canvas.ellipse if number % 2 else canvas.rectangle
        draw((left, top, left + width, top + height), fill=tuple(colour))
    return image


def cropped(image: Image.Image, edges: tuple[float, float, float, float]) -> Image.Image:
    """Without these shares of the left, top, right and bottom."""
    left, top, right, bottom = edges
    width, height = image.size
    right, bottom = width * (1 - right), height * (1 - bottom)
    return image.crop((round(width * left), round(height * top), round(right), round(bottom)))


def encoded(image: Image.Image, quality: int = 60) -> Image.Image:
    """Through a JPEG and back."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    width, height = image.size
    return image.resize((round(width * factor), round(height * factor)))
