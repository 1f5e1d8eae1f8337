"""`save` and `load`, which output layers that train have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from os import PathLike
from typing import TYPE_CHECKING, Any, SupportsIndex

from .._arguments.numbers import check_flag, check_num_threads
from . import store

if TYPE_CHECKING:
    from typing import Self


class StoredLayer(ABC):
    """An output layer that is written to a file as a whole."""

    num_threads: int | None

    @abstractmethod
    def _contents(self) -> tuple[store.Arrays, dict[str, Any]]:
        """Arrays and header for a file."""

    @classmethod
    @abstractmethod
    def _from_contents(cls, arrays: store.Arrays, header: dict[str, Any]) -> Self:
        """The layer in a file, after every check, in the context of `store.reading`; arrays are not copied."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write the layer to a file, which is replaced as a whole or not at all.

        Parameters
        ----------
        path : str or path-like
            File name; the file is a safetensors file with checksums. The number of threads is not saved.

        Raises
        ------
        ValueError
            If the name ends in .npz.
        ImportError
            If safetensors is missing.
        """
        store.write(path, type(self).__name__, *self._contents())

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        mmap: bool = False,
        verify: bool = True,
        num_threads: SupportsIndex | None = None,
    ) -> Self:
        """Read a layer from a file that `save` has written; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
            File name.
        mmap : bool, default False
            Let the parameters be read-only memory maps of the file; `step` copies them.
        verify : bool, default True
            Compare the checksums of header and arrays.
        num_threads : int, optional
            Upper bound on the number of threads.

        Returns
        -------
        The layer, of the class of the file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        TypeError
            If `mmap` or `verify` is not a bool.
        ValueError
            If the file is not such a layer, or damaged. The message names the file and the problem.

        Examples
        --------
        >>> import os, tempfile
        >>> from csoftmax.heads import AdaptiveSoftmax
        >>> layer = AdaptiveSoftmax(8, 100, cutoffs=[10, 40], rng=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     layer.save(os.path.join(folder, "layer.safetensors"))
        ...     loaded = AdaptiveSoftmax.load(os.path.join(folder, "layer.safetensors"))
        >>> bool((loaded.parameters["head"] == layer.parameters["head"]).all())
        True
        """
        threads = check_num_threads(num_threads)
        arrays, header = store.read(
            path, cls.__name__, mmap=check_flag("mmap", mmap), verify=check_flag("verify", verify)
        )
        with store.reading(path):
            layer = cls._from_contents(arrays, header)
        layer.num_threads = threads
        return layer
