"""Decoding: every kind of file comes out upright, 8-bit RGB, or as an error in plain words."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from labelloop.service.media import MediaMissing, MediaTooLarge, NotAnImage, image_size, load_image
from labelloop.service.memory_budget import MemoryBudget


def encoded(image, format_, **options):
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def scene(width=64, height=48):
    """Four corners that tell apart: red, green, blue, black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    return Image.fromarray(pixels)


CORNERS = {(8, 8): (255, 0, 0), (8, 56): (0, 255, 0), (40, 8): (0, 0, 255), (40, 56): (0, 0, 0)}
KINDS = {
    "jpeg": lambda: encoded(scene(), "JPEG", quality=95),
    "progressive jpeg": lambda: encoded(scene(), "JPEG", quality=95, progressive=True),
    "cmyk jpeg": lambda: encoded(scene().convert("CMYK"), "JPEG", quality=95),
    "png": lambda: encoded(scene(), "PNG"),
    "palette png": lambda: encoded(scene().quantize(8), "PNG"),
    "webp": lambda: encoded(scene(), "WEBP", lossless=True),
    "gif": lambda: encoded(scene().quantize(8), "GIF"),
    "bmp": lambda: encoded(scene(), "BMP"),
    "tiff": lambda: encoded(scene(), "TIFF", compression="tiff_lzw"),
    "avif": lambda: encoded(scene(), "AVIF", quality=95),
    "opaque rgba png": lambda: encoded(scene().convert("RGBA"), "PNG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_becomes_rgb(kind):
    photo = load_image(KINDS[kind]())
    assert (photo.pixels.shape, photo.pixels.dtype) == ((48, 64, 3), np.uint8)
    assert (photo.width, photo.height) == (64, 48)
    for at, colour in CORNERS.items():
        assert np.abs(photo.pixels[at].astype(int) - colour).max() <= 8, at


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_as_pillow_itself_applies_it(format_, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(), format_, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    photo = load_image(data)
    assert np.array_equal(photo.pixels, upright)
    assert (photo.width, photo.height) == image_size(data) == upright.shape[1::-1]


def test_a_smaller_picture_keeps_the_size_of_the_original():
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = load_image(encoded(scene(1600, 1200), "JPEG", exif=exif), max_side=320)
    assert photo.pixels.shape == (320, 240, 3)
    assert (photo.width, photo.height) == (1200, 1600)
    assert photo.pixels[10, 10].tolist()[2] > 240  # the lower left corner has turned to the upper left


def test_a_picture_that_is_small_already_is_not_enlarged():
    assert load_image(encoded(scene(), "PNG"), max_side=640).pixels.shape == (48, 64, 3)


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert load_image(encoded(image, "PNG")).pixels.tolist() == np.full((4, 4, 3), 255).tolist()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert load_image(encoded(palette, "PNG", transparency=1)).pixels[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_keep_their_high_byte():
    grey = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    photo = load_image(encoded(Image.fromarray(grey), "PNG"))
    assert photo.pixels[..., 0].tolist() == [[0, 0, 1], [128, 255, 255]]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    photo = load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50))
    assert photo.pixels[0, 0].tolist() == [255, 0, 0]


def test_a_file_and_an_open_file_read_alike(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(scene(), "PNG"))
    with path.open("rb") as file:
        assert np.array_equal(load_image(path).pixels, load_image(file).pixels)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"%PDF-1.7 ...", "a PDF"),
        (b"<!DOCTYPE html><title>Log in</title>", "a web page"),
        (b'{"detail": "no"}', "JSON"),
        (b"", "an empty file"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "a HEIC photo"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00", "a video or a sound"),
        (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom", "a raw photo"),
        (b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00avifmif1", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\xff\x0a\x00\x10", "a JPEG XL image"),
        (b"\x00" * 100, "something else"),
    ],
)
def test_what_is_no_image_is_named(data, says):
    with pytest.raises(NotAnImage, match=says):
        load_image(data)
    with pytest.raises(NotAnImage, match=says):
        image_size(data)


def test_floating_point_pixels_are_named_with_the_conversion_that_helps():
    data = encoded(Image.fromarray(np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)), "TIFF")
    with pytest.raises(NotAnImage, match="floating point") as refused:
        load_image(data)
    assert refused.value.fix == "Convert it to 8 bits per channel, such as PNG."


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "png", "webp", "tiff", "gif"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_file_cut_short_is_an_error_and_no_half_picture(kind, keep):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    options = {"jpeg": ("JPEG", {}), "progressive jpeg": ("JPEG", {"progressive": True}), "png": ("PNG", {})}
    options |= {"webp": ("WEBP", {}), "tiff": ("TIFF", {}), "gif": ("GIF", {})}
    data = encoded(noise, options[kind][0], **options[kind][1])
    with pytest.raises(NotAnImage):
        load_image(data[: int(len(data) * keep)], name="cut.jpg")


def test_too_many_pixels_are_refused_from_the_header():
    data = encoded(Image.new("1", (11_000, 11_000)), "PNG")  # 121 million pixels in some kilobytes
    assert len(data) < 50_000
    for call in (load_image, image_size):
        with pytest.raises(MediaTooLarge, match="LABELLOOP_MEDIA_MAX_PIXELS"):
            call(data)
    with pytest.raises(MediaTooLarge, match="64 x 48"):
        load_image(KINDS["png"](), max_pixels=64 * 48 - 1)
    assert load_image(KINDS["png"](), max_pixels=64 * 48).width == 64


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(MediaMissing):
        load_image(tmp_path / "no.jpg")


def test_a_colour_profile_does_no_harm():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert load_image(encoded(scene(), "JPEG", icc_profile=profile)).width == 64


def noise(mode, size=(1733, 1211)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 7 + 1, size[0] // 7 + 1, 4), np.uint8)
    pixels = np.kron(pixels, np.ones((7, 7, 1), np.uint8))[: size[1], : size[0]]
    image = Image.fromarray(pixels, "RGBA")
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
@pytest.mark.parametrize("max_side", [None, 640])
def test_conversion_in_bands_equals_conversion_at_once(mode, max_side):
    data = encoded(noise(mode), "PNG")
    with Image.open(io.BytesIO(data)) as image:
        white = Image.new("RGBA", image.size, "white")
        at_once = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    photo = load_image(data, max_side=max_side)
    if max_side:
        at_once = at_once.resize((photo.pixels.shape[1], photo.pixels.shape[0]), Image.Resampling.BILINEAR)
    difference = np.abs(photo.pixels.astype(int) - np.asarray(at_once))
    assert difference.max() <= (1 if max_side else 0)
    assert (difference > 0).mean() < 0.01


def test_jpeg_2000_is_decoded_at_a_reduced_size():
    data = encoded(noise("RGB"), "JPEG2000")
    photo = load_image(data, max_side=200)
    assert (photo.width, photo.height, max(photo.pixels.shape)) == (1733, 1211, 200)
    whole = Image.fromarray(load_image(data).pixels).resize(photo.pixels.shape[1::-1], Image.Resampling.BILINEAR)
    assert np.abs(photo.pixels.astype(int) - np.asarray(whole)).mean() < 8


def test_an_image_heavier_than_the_budget_is_refused():
    data = encoded(noise("RGB"), "WEBP", lossless=True)
    with pytest.raises(MediaTooLarge, match=r"1733 x 1211 pixels of WEBP.*LABELLOOP_MEDIA_MEMORY_BYTES"):
        load_image(data, max_side=100, budget=MemoryBudget(30 << 20))
    assert load_image(data, max_side=100, budget=MemoryBudget(80 << 20)).width == 1733


PEAK = """
import ctypes, sys
ctypes.CDLL(None).mallopt(-3, 262144); ctypes.CDLL(None).mallopt(-1, 262144)
import labelloop.service.media.image as photo
from labelloop.service.memory_budget import MemoryBudget

weights = []
weigh = photo.decoding_bytes
photo.decoding_bytes = lambda *a, **k: weights.append(weigh(*a, **k)) or weights[-1]
def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
photo.load_image(sys.argv[1], max_side=8)  # plug-ins are loaded
for side in (640, None):
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    photo.load_image(sys.argv[1], max_side=side, budget=MemoryBudget(1 << 40))
    print(peak() - before, weights[-1])
"""
PEAKS = {
    "jpeg": ("JPEG", "RGB", {}),
    "progressive jpeg": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    "png": ("PNG", "RGB", {"compress_level": 1}),
    "rgba png": ("PNG", "RGBA", {"compress_level": 1}),
    "palette png": ("PNG", "P", {"compress_level": 1}),
    "webp": ("WEBP", "RGB", {"method": 0}),
    "avif": ("AVIF", "RGB", {"speed": 10}),
    "tiff": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", PEAKS)
def test_decoding_takes_no_more_than_it_weighs(kind, tmp_path):
    format_, mode, options = PEAKS[kind]
    file = tmp_path / "image"
    file.write_bytes(encoded(noise(mode, (3000, 2800)), format_, **options))
    done = subprocess.run([sys.executable, "-c", PEAK, file], capture_output=True, text=True, timeout=240, check=True)
    for line in done.stdout.splitlines():
        peak, weight = map(int, line.split())
        assert peak <= weight + (8 << 20)


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind the pixels"])
def test_png_orientation_is_read_without_decoding(behind, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(scene(), "PNG", exif=exif)
    if behind:
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        iend = data.index(b"IEND") - 4
        data = data[:start] + data[end:iend] + data[start:end] + data[iend:]
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).size
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("pixels were decoded"))
    assert image_size(data) == upright == (48, 64)
