"""What is said to Redis: the functions library, the commands around it, the bytes, the connections."""
