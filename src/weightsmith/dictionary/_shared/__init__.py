"""What the dictionary estimators share: scikit-learn's contract, and sums over several processes."""
