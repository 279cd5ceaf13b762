"""Models as files that run without mmhf: graphs for ONNX Runtime or torch, what is done before and after them, and a
program that uses both."""
