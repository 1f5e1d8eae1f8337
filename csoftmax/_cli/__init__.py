"""The commands of ``python -m csoftmax``; csoftmax/__main__.py reads the options and calls ``run`` of one of them."""
