import signal

import pytest
import torch

# A shell that starts the tests in its background has them ignore Ctrl-C, and so would each process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--accelerator", default="cuda", help="device of the tests marked cuda; cpu rehearses them")


@pytest.fixture(autouse=True)
def _reproducible():
    """One thread (the machine may be small) and a fixed seed for the tests' own random numbers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
