"""Peak memory: that of the devices where they tell, else that of the process."""

import jax
import pytest

from grpo_jax.memory import peak_memory


def test_memory_is_that_of_the_device_where_it_says_so(monkeypatch: pytest.MonkeyPatch):
    found, of = peak_memory()
    assert of == "process" and 1e7 < found < 1e12

    class Device:
        def __init__(self, stats: dict[str, int] | None) -> None:
            self.stats = stats

        def memory_stats(self) -> dict[str, int] | None:
            return self.stats

    devices = [Device({"peak_bytes_in_use": 5}), Device({"peak_bytes_in_use": 7}), Device(None)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert peak_memory() == (7.0, "device")
