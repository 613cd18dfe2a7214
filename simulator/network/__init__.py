"""Networks: links with their wires, impairments, transport and radio."""
