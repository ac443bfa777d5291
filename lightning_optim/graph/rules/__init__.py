"""Rules: what each family of operators does to the labels of its operands; every file here is found and read."""
