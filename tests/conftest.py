import pytest


@pytest.fixture
def tiny():
    """Fields, as typed on the command line, of a training of about a second."""
    return ["train_images=40", "student=wrn-10-1", "epochs=1", "batch=20"]
