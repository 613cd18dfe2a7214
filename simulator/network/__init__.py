"""Links: wires, impairments, transport, radio."""
