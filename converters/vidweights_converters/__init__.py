"""What makes and proves the weights."""
