import subprocess
import sys

import pytest

from atbook.names import METHODS, TEACHERLESS, choose, network, wrn_shape


def test_shape_of_a_network():
    assert wrn_shape("wrn-40-2") == (40, 2)


@pytest.mark.parametrize(
    ("name", "remedy"), [("wrn-17-1", "use 16 or 22"), ("wrn-4-1", "use 10 or 16"), ("wrn-12-1", "use 10 or 16")]
)
def test_a_wrong_depth_names_its_neighbours(name, remedy):
    with pytest.raises(ValueError, match=remedy):
        wrn_shape(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [("resnet8x3", "did you mean 'resnet8x4'"), ("nin-thi", "did you mean 'nin-thin'"), ("vgg8", "one of nin-thin")],
)
def test_an_unknown_network_names_the_nearest(name, said):
    with pytest.raises(ValueError, match=said):
        network(name)


def test_known_networks_and_methods():
    assert [network(name) for name in ("nin-thin", "resnet8x4", "wrn-28-10")] == ["nin-thin", "resnet8x4", "wrn-28-10"]
    assert set(TEACHERLESS) < set(METHODS)


def test_an_unknown_name_says_what_was_meant():
    with pytest.raises(ValueError, match=r"method 'att' is unknown: choose one of 'at', 'kd'; did you mean 'at'\?"):
        choose("method", "att", ("at", "kd"))


def test_names_and_recipes_need_no_torch():
    code = "import sys, atbook.names, atbook.recipes, atbook.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
