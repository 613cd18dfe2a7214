"""Quality of finished images: likelihood under the cloud model, alignment with captions, distance from real images."""
