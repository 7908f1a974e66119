"""Takes a forge's webhook, proves who sent it, and stores it before answering."""
