"""What runs on the nodes, and how the end of every attempt is written down."""
