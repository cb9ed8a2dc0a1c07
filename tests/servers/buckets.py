"""Fresh buckets in any server with an S3 API."""

import uuid
from typing import Any


class Buckets:
    """What every server of the tests offers; it says where it is and who is let in."""

    endpoint_url: str
    key: str
    secret: str

    def bucket(self, name: str = "") -> str:
        """Makes a bucket; the name is completed so that it is fresh."""
        bucket = f"{name or 'b'}-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=bucket)
        return bucket

    def client(self) -> Any:
        """A boto3 client, for what featlib's own code should not be asked."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )
