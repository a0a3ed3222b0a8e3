import os
import subprocess
import sys

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
    code = (
        "from keras_plasticity.datasets import prepared_data\n"
        "with prepared_data._silent_stderr():\n"
        "    print('read')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.close(2),
    )
    assert result.returncode == 0 and result.stdout == "read\n"
