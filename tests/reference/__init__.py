"""The peers written out from their formulas: slow, plain, and apart from the product.

Nothing here imports vpltool. The tests compare what the commands write with these.
"""
