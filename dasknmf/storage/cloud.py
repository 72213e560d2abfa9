"""Objects in an S3-like store, through obstore. ``create`` is a PUT with ``If-None-Match: *``."""

from __future__ import annotations

import builtins
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dasknmf.numerics.errors import DamagedError, MissingError, StoreError
from dasknmf.storage.objects import Objects, checked

if TYPE_CHECKING:
    from typing_extensions import Buffer

MEMORY: dict[str, Any] = {}  # memory:// URL -> store: the same objects for all of the process
CONDITIONS = (
    "Checkpoints need conditional writes (If-None-Match: *). Pass the storage option "
    "conditional_put='etag', update the store, or choose another place"
)


class CloudObjects(Objects):
    """Objects below a URL; ``options`` are those of ``obstore.store.from_url``."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url.rstrip("/")
        self.options = options
        self._opened: Any = None
        _obstore(self.url)

    def __reduce__(self) -> Any:
        return CloudObjects, (self.url, self.options)

    def put(self, key: str, data: Buffer) -> None:
        with self._told(key, "writing"):
            # One PUT: a multipart upload that dies leaves parts that are paid for and not listed.
            _obstore(self.url).put(self._store, checked(key), data, use_multipart=False)

    def create(self, key: str, data: Buffer) -> bool:
        from obstore.exceptions import BaseError, NotSupportedError

        body = bytes(data)
        with self._told(key, "creating"):
            try:
                _obstore(self.url).put(self._store, checked(key), body, mode="create")
            except NotSupportedError as error:
                raise StoreError(f"{self.url} refuses conditional writes. {CONDITIONS}.") from error
            except (BaseError, OSError):
                # Either another was first, or the reply was lost, or nothing was written.
                try:
                    return self.get(key, limit=len(body)) == body
                except DamagedError:
                    return False  # it is larger
                except MissingError:
                    pass
                raise
        return True

    def get(self, key: str, limit: int | None = None) -> bytes:
        with self._told(key, "reading"):
            found = _obstore(self.url).get(self._store, checked(key))
            size = found.meta["size"]
            if limit is not None and size > limit:
                raise DamagedError(f"{self.url}/{key} has {size} bytes; expected at most {limit}.")
            return bytes(found.bytes())

    def list(self, prefix: str = "") -> builtins.list[str]:
        with self._told(prefix, "listing"):
            found = _obstore(self.url).list(self._store, _folder(prefix)).collect()
        return sorted(item["path"] for item in found)

    def names(self, prefix: str = "") -> builtins.list[str]:
        with self._told(prefix, "listing"):
            found = _obstore(self.url).list_with_delimiter(self._store, _folder(prefix))
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return sorted(path.rstrip("/").split("/")[-1] for path in paths)

    def delete(self, key: str, *, durable: bool = False) -> None:
        with self._told(key, "removing"):
            try:
                _obstore(self.url).delete(self._store, checked(key))
            except FileNotFoundError:
                return

    def clear(self, prefix: str) -> None:
        checked(prefix)
        keys = self.list(prefix)
        with self._told(prefix, "removing"):
            for start in range(0, len(keys), 1000):
                try:
                    _obstore(self.url).delete(self._store, keys[start : start + 1000])
                except FileNotFoundError:
                    continue

    def sweep(self, prefix: str, age: float) -> None:
        """Nothing to remove: a PUT leaves no temporary objects."""

    def modified(self, key: str) -> float | None:
        with self._told(key, "looking at"):
            try:
                about = _obstore(self.url).head(self._store, checked(key))
            except FileNotFoundError:
                return None
        return float(about["last_modified"].timestamp())

    def now(self) -> float:
        key = f"probe-{uuid.uuid4().hex}"
        self.put(key, b"clock")
        try:
            written = self.modified(key)
        finally:
            self.delete(key)
        return time.time() if written is None else written

    def check_exclusive(self) -> None:
        key = f"probe-{uuid.uuid4().hex}"
        first = self.create(key, uuid.uuid4().bytes)
        second = self.create(key, uuid.uuid4().bytes)
        self.delete(key)
        if not first or second:
            raise StoreError(
                f"{self.url} let a second writer replace an object that it was to create only if "
                f"absent. {CONDITIONS}."
            )

    @property
    def _store(self) -> Any:
        if self._opened is None:
            _obstore(self.url)
            from obstore.store import MemoryStore, from_url

            if self.url.startswith("memory:"):
                self._opened = MEMORY.setdefault(self.url, MemoryStore())
            else:
                with self._told("", "opening"):
                    self._opened = from_url(self.url, **self.options)
        return self._opened

    @contextmanager
    def _told(self, key: str, doing: str) -> Iterator[None]:
        """Turn the store's errors into a StoreError that says where, what and what to do."""
        from obstore.exceptions import BaseError

        place = f"{self.url}/{key}" if key else self.url
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise MissingError(f"{place} is not there.") from error
        except (BaseError, OSError, ValueError) as error:
            raise StoreError(
                f"{doing} {place} failed: {error!s:.500}. Look at the URL, the credentials and the "
                "network, then start again. Nothing that was committed before is lost."
            ) from error


def _folder(prefix: str) -> str | None:
    return f"{checked(prefix)}/" if prefix else None


def _obstore(url: str) -> Any:
    try:
        import obstore
    except ImportError as error:
        raise StoreError(
            f"{url} needs obstore: pip install 'dasknmf[cloud]', or use a local path."
        ) from error
    return obstore
