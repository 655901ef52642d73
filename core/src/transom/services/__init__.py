"""What every driver author would otherwise write again."""
