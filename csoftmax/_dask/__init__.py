"""Parts of `csoftmax.dask`."""
