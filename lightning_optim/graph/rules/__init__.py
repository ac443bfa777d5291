"""What each family of operators does to the labels of its operands: one file a family, found by being here."""
