"""What motion is: skeletons, representations, rotations, statistics, rigid bones and planted feet."""
