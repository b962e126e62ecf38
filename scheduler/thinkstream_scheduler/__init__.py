"""From the queue to the replicas: policy and liveness. Names no tensor."""
