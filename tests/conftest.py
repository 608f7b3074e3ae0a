import pytest
from hypothesis import settings

# The same examples every time, however busy the machine is.
settings.register_profile("book", deadline=None, derandomize=True, database=None)
settings.load_profile("book")


@pytest.fixture
def tiny():
    """Fields, as typed on the command line, of a training of about a second."""
    return ["train_images=40", "student=wrn-10-1", "epochs=1", "batch=20"]
