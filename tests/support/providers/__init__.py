"""Stand-ins for SendGrid and Twilio: strict about what they take, and troublesome on demand."""
