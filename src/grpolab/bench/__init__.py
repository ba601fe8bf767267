"""`grpolab bench`: this program beside its peers on the same work, and both beside the limit."""
