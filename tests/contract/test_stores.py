"""Every store keeps the contract."""

import pytest

from vmkeep.stores.directory import DirectoryStore
from vmkeep.stores.memory import MemoryStore
from vmkeep.stores.open import open_store
from vmkeep.testing.faults import FaultyStore
from vmkeep.testing.stores import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture(autouse=True)
    def shared(self):
        self.memory = MemoryStore()

    def open_store(self):
        return self.memory


class TestDirectoryStore(StoreContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        self.path = tmp_path / "store"

    def open_store(self):
        return DirectoryStore(self.path)


class TestFaultyStoreWithoutFaults(TestMemoryStore):
    def open_store(self):
        return FaultyStore(self.memory)


@pytest.mark.integration
class TestS3Store(StoreContract):
    @pytest.fixture(autouse=True)
    def bucket(self, seaweed):
        self.options = seaweed.options
        self.address = f"s3://{seaweed.new_bucket()}/some/prefix"

    def open_store(self):
        return open_store(self.address, s3=self.options)
