"""Campaigns against the product: hostile files (`make fuzz`), kills and faults (`make chaos`)."""
