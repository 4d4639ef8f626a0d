"""Toys on the demo images: labelled in the demo, always the same, inside the image, and as their outlines say."""

import numpy as np
from PIL import Image

from labelloop.labeling.studio.config import LabelConfig
from labelloop.stack.demo_images import packaged_images, toys_on
from labelloop.stack.demo_objects import TOYS, add_toys
from labelloop.stack.demo_project import INTERFACES, user_source

GREY = Image.new("RGB", (640, 480), (127, 127, 127))


def test_every_toy_has_a_label_where_something_is_drawn():
    for interface in INTERFACES.values():
        [control] = LabelConfig.parse(interface.label_config).controls.values()
        drawn = control.type != "choices"
        assert drawn == (set(TOYS) <= {label.value for label in control.labels})


def test_images_of_the_user_are_said_to_have_no_toys(tmp_path):
    interface = user_source(tmp_path).interface
    for toy in TOYS:
        assert toy not in interface.label_config
        assert toy.lower() not in interface.instruction
    assert 'value="Person"' in interface.label_config


def test_outlines_are_where_the_toys_are():
    for seed in range(6):
        painted, toys = add_toys(GREY, seed)
        again, same = add_toys(GREY, seed)
        assert toys == same
        assert np.array_equal(painted, again)
        assert [toy.label for toy in toys] == list(TOYS)
        changed = (np.asarray(painted) != np.asarray(GREY)).any(-1)
        for toy in toys:
            left, top, right, bottom = (round(side) for side in toy.box)
            assert 0 <= left < right <= GREY.width
            assert 0 <= top < bottom <= GREY.height
            assert changed[top:bottom, left:right].mean() > 0.6
            changed[max(0, top - 12) : bottom + 12, max(0, left - 12) : right + 12] = False
        assert changed.mean() < 0.002  # knots of balloons


def test_the_toys_of_a_packaged_image_are_known_by_its_name(tmp_path):
    for path in packaged_images(tmp_path)[:3]:
        with Image.open(path) as image:
            pixels = np.asarray(image)
            toys = toys_on(path.name, image.size)
        for toy in toys:
            left, top, right, bottom = (round(side) for side in toy.box)
            assert pixels[top:bottom, left:right].std() > 10
