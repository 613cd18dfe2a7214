"""Quality of finished images: likelihood under the cloud model, agreement with captions, distance from real images."""
