"""What the library does with every module, loss, utility and optimiser of torch: measured, row by row, into a page."""
