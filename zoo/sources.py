"""Sources of models: the packaged ones, a folder, a web server, or a Hugging Face repository.

All hold the same tree, as `kerasae zoo publish` writes it: `index.json`, and `<id>/<file>` for each model. The index names the sha256 of
every file, and no file is used whose bytes differ: it is the one that the publisher indexed, whatever happened on the way or in the cache.
Whoever chooses a source must trust its publisher. The packaged index is part of kerasae's release: its files may come from anywhere.
"""

import contextlib
import io
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from kerasae import writing
from kerasae.zoo.indexes import parse_index

_logger = logging.getLogger(__name__)

PACKAGED = Path(__file__).parent / "models"

_TIMEOUT = 30  # seconds without a byte
# A transfer may take so many seconds, and a file's so many more as it has bytes by the slowest rate.
_SECONDS, _SLOWEST = 120, 20_000
_RETRIES = 2
_LARGEST_INDEX = 10_000_000  # bytes


def cache():
    """The folder of downloaded files: `zoo` in `$KERASAE_CACHE`, or else in the platform's cache folder for kerasae."""
    import pooch

    return Path(os.environ.get("KERASAE_CACHE") or pooch.os_cache("kerasae")).expanduser() / "zoo"


def source(where=None):
    """The source of a name.

    Args:
        where: `"packaged"`, a folder, `"https://…"`, `"http://localhost…"`, or `"hf://owner/name"` (`@revision` may follow). None takes
            `$KERASAE_ZOO`, or else `"packaged"`. A source is returned as it is, so that its index is read once.

    Returns:
        An object with `index()` and `path(model_id, name)`, the path of a file whose hash was checked.
    """
    if isinstance(where, _Folder | _Remote):
        return where
    where = str(where or os.environ.get("KERASAE_ZOO") or "packaged")
    if where == "packaged":
        return _Folder(PACKAGED, "what is packaged with kerasae")
    if match := re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/?", where):
        return _HuggingFace(*match.groups())
    if where.startswith(("https://", "http://")):
        _check_scheme(where)
        return _Web(where)
    if "://" in where:
        raise ValueError(
            f'A zoo\'s source is "packaged", a folder, "https://…", "http://localhost…" or "hf://owner/name". Received: {where!r}'
        )
    return _Folder(Path(where).expanduser(), where)


class _Folder:
    def __init__(self, root, name):
        self._root = root
        self._name = name

    def __str__(self):
        return self._name

    def index(self):
        path = self._root / "index.json"
        try:
            return parse_index(path.read_bytes(), path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"{self._root} is no zoo: it has no index.json. `kerasae zoo publish {self._root}` writes one."
            ) from error

    def path(self, model_id, name):
        file = self.index().models[model_id].files[name]
        path = self._root / model_id / name
        packaged = self._root == PACKAGED
        if not path.exists():
            # Too large for the wheel, and downloaded before: any file with the right hash will do.
            if (path := _cached(file, name)).exists() and writing.sha256(path) == file.sha256:
                return path
            advice = "Publish it again."
            if packaged:
                advice = (
                    "Large models don't travel in the wheel: set KERASAE_ZOO to a checkout's zoo/models, or get it once with `kerasae zoo "
                    f"download {model_id} --source https://…` from wherever the zoo is published."
                )
            raise FileNotFoundError(f"{name} of {model_id!r} is missing from {self}. {advice}")
        if (received := writing.sha256(path)) != file.sha256:
            advice = "Install kerasae again." if packaged else "Publish it again if it was changed on purpose."
            raise ValueError(
                f"{path} is not the file that was published: its sha256 is {received}, the index says {file.sha256}. {advice}"
            )
        return path


class _Remote:
    """A source whose files are downloaded into the cache, named by their hash."""

    def __init__(self, name):
        self._name = name
        self._index = None

    def __str__(self):
        return self._name

    def index(self):
        if self._index is None:
            self._index = self._download_index()
        return self._index

    def _download_index(self):
        url = f"{self}/index.json"
        seen = cache() / f"{writing.sha256(str(self).encode())}-index.json"
        try:
            with tempfile.TemporaryDirectory() as folder:
                content = Path(self._fetch("index.json", Path(folder) / "index.json")).read_bytes()
        except (ConnectionError, TimeoutError) as error:
            if not seen.exists():
                raise
            _logger.warning("%s Using the index as it was last seen.", error)
            return parse_index(seen.read_bytes(), seen)
        index = parse_index(content, url)
        with contextlib.suppress(OSError):  # a cache that can't be written may still hold every file
            seen.parent.mkdir(parents=True, exist_ok=True)
            with writing.file(seen) as beside:
                beside.write_bytes(content)
        return index

    def path(self, model_id, name):
        file = self.index().models[model_id].files[name]
        return self._fetch(f"{model_id}/{name}", _cached(file, name), file)

    def _fetch(self, path, target, file=None):
        """Downloads `path` of the source to `target`, unless it is there with the right hash."""
        import pooch
        import requests

        url = f"{self}/{path}"
        _remove_stale(target.parent)
        pins = {"registry": {target.name: file and file.sha256}, "urls": {target.name: url}}
        registry = pooch.Pooch(target.parent, "", **pins, retry_if_failed=_RETRIES)

        def downloader(_, output, __):
            limit = file.bytes if file else _LARGEST_INDEX
            seconds = _SECONDS + (limit / _SLOWEST if file else 0)
            _in_time(lambda: self._transfer(path, output, limit, file is not None), seconds, url)

        log = pooch.get_logger()
        level = log.level
        if file is None:  # asked for each time, and small: not worth a line
            log.setLevel(logging.WARNING)
        try:
            return Path(registry.fetch(target.name, downloader=downloader))
        except (requests.ConnectionError, requests.Timeout) as error:
            raise ConnectionError(f"Can't reach {url}: {error}. Check the network and the address.") from error
        except requests.RequestException as error:
            raise OSError(f"{url} can't be downloaded: {error}. Nothing was kept; try again.") from error
        except ValueError as error:
            raise ValueError(f"{url} is not the file that was published. {error} Nothing was kept.") from error
        except OSError as error:
            if error.errno is None and not isinstance(error, PermissionError):
                raise
            raise OSError(
                f"Can't write into the cache {target.parent}: {error.strerror or 'no permission'}. "
                "Free some space, or set KERASAE_CACHE to another folder."
            ) from error
        finally:
            log.setLevel(level)


class _Web(_Remote):
    def __init__(self, base):
        super().__init__(base.rstrip("/"))

    def _transfer(self, path, output, limit, exact):
        import pooch

        download = pooch.HTTPDownloader(
            progressbar=limit > 1_000_000 and exact, chunk_size=1 << 16, timeout=_TIMEOUT, hooks={"response": _check}
        )
        url = f"{self}/{quote(path)}"
        with _Limited(output, limit, url) as file:
            download(url, file, None)
        if exact and (received := os.path.getsize(output)) != limit:
            raise ValueError(f"It ended after {received:,} of {limit:,} bytes.")


class _HuggingFace(_Remote):
    def __init__(self, repository, revision=None):
        super().__init__(f"hf://{repository}" + (f"@{revision}" if revision else ""))
        self._repository = repository
        self._revision = revision

    def _transfer(self, path, output, limit, exact):
        try:
            import huggingface_hub
            from huggingface_hub import errors
        except ImportError as error:
            raise ImportError(f"{self} needs huggingface_hub: `pip install 'kerasae[hub]'`.") from error
        url = f"{self}/{path}"
        with tempfile.TemporaryDirectory(dir=Path(output).parent) as folder:
            try:
                # Its client retries by itself.
                got = huggingface_hub.hf_hub_download(
                    self._repository, path, revision=self._revision, local_dir=folder, etag_timeout=_TIMEOUT
                )
            except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
                raise ConnectionError(f"Can't reach {url}: {error.__cause__ or error}.") from error
            except (errors.HfHubHTTPError, errors.HFValidationError) as error:
                raise FileNotFoundError(f"{url} can't be downloaded: {' '.join(str(error).split())}") from error
            except errors.HTTPError as error:
                raise ConnectionError(f"Can't reach {url}: {error!r}.") from error
            if os.path.getsize(got) > limit:
                raise OSError(f"{url} is larger than the {limit:,} bytes that were announced.")
            os.replace(got, output)


class _Limited(io.FileIO):
    """A file that refuses more bytes than the index announced, so that no server can fill the disk."""

    def __init__(self, path, limit, url):
        super().__init__(path, "wb")
        self._limit = limit
        self._url = url

    def write(self, content):
        if self.tell() + len(content) > self._limit:
            raise OSError(
                f"{self._url} sends more than the {self._limit:,} bytes that were announced. Nothing was kept."
            )
        return super().write(content)


def _in_time(transfer, seconds, url):
    """Runs a transfer, or raises `TimeoutError`: a server that sends a byte now and then never runs into `_TIMEOUT`."""
    failed = []

    def run():
        try:
            transfer()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(
            f"{url} sends too slowly: not done after {seconds:.0f} seconds. Nothing was kept; try again."
        )
    if failed:
        raise failed[0]


def _check(response, **_):
    # Each step of a redirect passes here, before the next is asked for.
    _check_scheme(urljoin(response.url, response.headers.get("location", "")))
    if 400 <= response.status_code < 500 and response.status_code not in (408, 429):  # these two are worth trying again
        raise FileNotFoundError(f"{response.url} can't be downloaded: {response.status_code} {response.reason}.")


def _check_scheme(url):
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise OSError(
            f"{url} is not encrypted, so its index could be anyone's. Use https; http is for this machine only."
        )


def _cached(file, name):
    return cache() / f"{file.sha256}-{name}"


def _remove_stale(folder):
    # Temporary files that are older than a day belong to processes that were killed.
    with contextlib.suppress(OSError):
        for path in (*folder.glob("tmp*"), *folder.glob(f"{writing.BESIDE}*")):
            if time.time() - path.stat().st_mtime > 86_400:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
