//! Client messages: views of those that routing needs, builders of those pgward sends to servers.
