"""What nodes say to each other, and the connections that it travels on."""
