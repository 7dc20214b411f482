"""The same model without PyTorch: C++ with one C interface, and its use from Python."""
