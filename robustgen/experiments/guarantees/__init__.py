"""What is proved of networks and detectors, where other tables say what attacks left of them."""
