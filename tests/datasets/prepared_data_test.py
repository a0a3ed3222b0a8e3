import os

import pytest

from keras_plasticity.datasets import prepared_data


def test_what_is_imported_for_reading_says_nothing(capfd):
    os.write(2, b"before ")
    with pytest.raises(ImportError, match="no such"):
        with prepared_data._silent_stderr():
            os.write(2, b"notes of devices ")
            raise ImportError("no such package")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_standard_error_may_be_closed():
    kept = os.dup(2)
    os.close(2)
    is_read = False
    try:
        with prepared_data._silent_stderr():
            is_read = True
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert is_read
