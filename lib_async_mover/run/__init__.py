"""What happens in a forward: leaves are traced, bound, streamed, timed, and planned for."""
