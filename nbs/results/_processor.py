"""What a measurement says of the machine that it was made on."""
import platform
from pathlib import Path


def processor():
    "What the machine calls its processor; on Linux with its family and model."
    info = Path('/proc/cpuinfo')
    if not info.exists():
        return platform.machine()
    lines = [line.partition(':') for line in info.read_text().splitlines()]
    named = {key.strip(): value.strip() for key, _, value in lines}
    return (f'{named.get("model name", platform.machine())}, family '
            f'{named.get("cpu family")}, model {named.get("model")}')
