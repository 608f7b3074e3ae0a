import os
import shutil

import pytest
import torch
from hypothesis import settings
from playwright.sync_api import sync_playwright

# The same examples every time, however busy the machine is.
settings.register_profile("book", deadline=None, derandomize=True, database=None)
settings.load_profile("book")


@pytest.fixture(autouse=True)
def threads():
    """Tools that set the number of threads set it for their own test alone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny():
    """Fields, as typed on the command line, of a training of about a second."""
    return ["train_images=40", "student=wrn-10-1", "epochs=1", "batch=20"]


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium. Where there is none, tests that need it are skipped, unless ATBOOK_BROWSER requires it."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        (pytest.fail if os.environ.get("ATBOOK_BROWSER") else pytest.skip)("no browser here: install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
