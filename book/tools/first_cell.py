# Installs the course's package where it is missing, on Colab for instance.
# An installed torch or numpy stays exactly as it is.
import importlib.util

if importlib.util.find_spec("normtutor") is None:
    import importlib.metadata
    import pathlib
    import subprocess
    import sys
    import tempfile

    address = "git+https://github.com/normtutor/normtutor"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", address, "--constraint"]
    present = [name for name in ("torch", "numpy") if importlib.util.find_spec(name)]
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in present]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "pins.txt")
        file.write_text("\n".join(pins))
        done = subprocess.run([*pip, str(file)], capture_output=True, text=True)
    if done.returncode != 0:
        message = "Installing the package failed. Is torch 2.6 or newer? pip says:\n"
        raise RuntimeError(message + done.stderr)
    importlib.invalidate_caches()
