"""Input maps: what a teacher is given where it does not take the student's inputs."""
