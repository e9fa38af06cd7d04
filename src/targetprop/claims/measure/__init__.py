"""What the claims are measured with: what they try, what they predict, and how the two are compared."""
