// The store against strangers, changed messages and damaged connections.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/rendezvous/socket.h"
#include "comm/rendezvous/store.h"
#include "comm/rendezvous/store_protocol.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

constexpr char kHost[] = "127.0.0.1";
constexpr char kKey[] = "the job's key";
constexpr absl::Duration kLong = absl::Seconds(60);  // never waited out

absl::Time Later() { return absl::Now() + kLong; }

// What the server sent until it ended the connection.
std::string ReadToEnd(const Socket& socket) {
  std::string all;
  char chunk[4096];
  ssize_t got;
  while ((got = recv(socket.fd(), chunk, sizeof(chunk), 0)) > 0) {
    all.append(chunk, got);
  }
  return all;
}

class StoreAttack : public testing::Test {
 protected:
  StoreAttack()
      : server_(*StoreServer::Start(kHost, 0, kKey)),
        store_(*Store::Connect(kHost, server_->port(), kKey, 0, kLong)) {}

  Socket Dial() { return *ConnectTo(kHost, server_->port(), Later()); }

  // A client of its own that may send what it likes.
  struct Client {
    Socket socket;
    StoreHandshake handshake;
    std::string sent;  // so far
    std::unique_ptr<FrameCodec> sealer, opener;

    void Send(const std::string& bytes) {
      sent += bytes;
      ASSERT_TRUE(SendAll(socket, bytes).ok());
    }
    std::string SealSet(const std::string& key, const std::string& value) {
      return sealer->Seal(
          StoreRequest{1, StoreRequest::kSet, key, value}.Encode());
    }
    StoreReply Answer() {
      std::string bytes, body;
      while (true) {
        const auto opened = opener->Open(bytes, body);
        EXPECT_TRUE(opened.ok()) << opened.status();
        if (*opened) return *StoreReply::Decode(body);
        const auto more = ReceiveExactly(socket, 1, Later());
        if (!more.ok()) return {0, more.status().code()};
        bytes += *more;
      }
    }
  };
  Client Enter(int rank) {
    Client client = {.socket = Dial()};
    client.handshake = {.key = kKey,
                        .server_nonce = *ReadHello(*ReceiveExactly(
                            client.socket, kHelloBytes, Later())),
                        .client_nonce = FreshNonce(),
                        .rank = static_cast<uint32_t>(rank)};
    client.Send(client.handshake.MakeProof());
    EXPECT_TRUE(
        client.handshake
            .ReadVerdict(*ReceiveExactly(client.socket, kVerdictBytes, Later()))
            .ok());
    client.sealer =
        std::make_unique<FrameCodec>(client.handshake, FrameCodec::kToServer);
    client.opener =
        std::make_unique<FrameCodec>(client.handshake, FrameCodec::kToClient);
    return client;
  }

  // The server has ended `client`, whose rank's failure it tells by `why`, and
  // nothing else: `store_` goes on, and "x" was not set.
  void ExpectEnded(const Client& client, const std::string& why) {
    ReadToEnd(client.socket);
    const std::string failure = *store_->Get("failure", kLong);
    EXPECT_EQ(failure, absl::StrCat("rank ", client.handshake.rank,
                                    "'s connection ended: it sent ", why));
    EXPECT_EQ(*store_->SetOnce("x", "untouched"), "untouched");
  }

  const std::unique_ptr<StoreServer> server_;
  const std::unique_ptr<Store> store_;
};

constexpr char kChanged[] =
    "a message that is changed, repeated or out of order";

TEST_F(StoreAttack, AnHonestClientOfOurOwnIsServed) {
  Client client = Enter(1);
  client.Send(client.SealSet("x", "1"));
  EXPECT_EQ(client.Answer().code, absl::StatusCode::kOk);
  EXPECT_EQ(*store_->Get("x", kLong), "1");
}

TEST_F(StoreAttack, Oversized) {
  Client client = Enter(1);
  client.Send(std::string("\x01\x00\x10\x00", 4));  // 1 MiB + 1
  ExpectEnded(client, "a message of 1048577 bytes, wanted at most 1048576");
}

TEST_F(StoreAttack, Repeated) {
  Client client = Enter(1);
  const std::string frame = client.SealSet("y", "1");
  client.Send(frame + frame);
  ExpectEnded(client, kChanged);
}

TEST_F(StoreAttack, Reordered) {
  Client client = Enter(1);
  const std::string first = client.SealSet("y", "1");
  client.Send(client.SealSet("x", "2") + first);
  ExpectEnded(client, kChanged);
}

TEST_F(StoreAttack, LeftOut) {
  Client client = Enter(1);
  client.SealSet("y", "1");
  client.Send(client.SealSet("x", "2"));
  ExpectEnded(client, kChanged);
}

TEST_F(StoreAttack, TurnedAround) {
  Client client = Enter(1);
  client.Send(client.SealSet("y", "1"));
  const std::string answer =
      *ReceiveExactly(client.socket, 4 + 9 + 32, Later());
  client.Send(answer);
  ExpectEnded(client, kChanged);
}

TEST_F(StoreAttack, OfAnotherConnection) {
  Client first = Enter(2), client = Enter(1);
  client.Send(first.SealSet("x", "1"));
  ExpectEnded(client, kChanged);
}

TEST_F(StoreAttack, Truncated) {
  Client client = Enter(1);
  const std::string frame = client.SealSet("x", "1");
  client.Send(frame.substr(0, frame.size() - 1));
  ASSERT_EQ(shutdown(client.socket.fd(), SHUT_WR), 0);
  ReadToEnd(client.socket);
  EXPECT_EQ(*store_->Get("failure", kLong), "rank 1's process ended");
  EXPECT_EQ(*store_->SetOnce("x", "untouched"), "untouched");
}

TEST_F(StoreAttack, Malformed) {
  for (const std::string& body :
       {std::string(), std::string(12, '\0'),
        std::string("\0\0\0\0\0\0\0\0\x06\0\0\0\0", 13),      // no such call
        std::string("\0\0\0\0\0\0\0\0\0\x02\0\0\0x", 14)}) {  // key too long
    Client client = Enter(1);
    client.Send(client.sealer->Seal(body));
    ExpectEnded(client, "a malformed request");
  }
  Client client = Enter(2);
  const StoreRequest get = {5, StoreRequest::kGet, "never", ""};
  client.Send(client.sealer->Seal(get.Encode()));
  client.Send(client.sealer->Seal(get.Encode()));
  ReadToEnd(client.socket);
  EXPECT_EQ(*store_->Add("n", 1), 1);
}

TEST_F(StoreAttack, ARecordedConnectionCannotBePlayedAgain) {
  Client client = Enter(1);
  client.Send(client.SealSet("x", "1"));
  EXPECT_EQ(client.Answer().code, absl::StatusCode::kOk);
  EXPECT_TRUE(store_->Set("x", "2").ok());
  const Socket replay = Dial();
  ASSERT_TRUE(SendAll(replay, client.sent).ok());
  ReadToEnd(replay);
  EXPECT_EQ(*store_->Get("x", kLong), "2");
}

TEST_F(StoreAttack, SilentAndSlowStrangersKeepNobodyWaiting) {
  std::vector<Socket> strangers;
  for (int i = 0; i < 300; ++i) {  // more than it keeps
    strangers.push_back(Dial());
    // Some begin.
    if (i % 2)
      SendAll(strangers.back(), std::string(1 + i % 60, 'm')).IgnoreError();
  }
  // The oldest have had to go for the others.
  ReadToEnd(strangers.front());
  const auto store = Store::Connect(kHost, server_->port(), kKey, 1, kLong);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(*(*store)->Add("n", 1), 1);
  EXPECT_EQ(*store_->Add("n", 1), 2);
}

// Bytes of any kind, and a good proof and frame with bits flipped: nobody gets
// in, and the others are served.
TEST_F(StoreAttack, RandomBytes) {
  std::mt19937 random(7);
  for (int i = 0; i < 500; ++i) {
    const Socket stranger = Dial();
    std::string bytes(random() % 300, '\0');
    for (char& c : bytes) c = random();
    if (i % 2) bytes.insert(0, MakeHello("").substr(0, 16));
    SendAll(stranger, bytes).IgnoreError();
    shutdown(stranger.fd(), SHUT_WR);
    ReadToEnd(stranger);
  }
  EXPECT_EQ(*store_->SetOnce("failure", "none"), "none");
}

TEST_F(StoreAttack, FlippedBits) {
  std::mt19937 random(11);
  for (int i = 0; i < 500; ++i) {
    Client client = {.socket = Dial()};
    client.handshake = {.key = kKey,
                        .server_nonce = *ReadHello(*ReceiveExactly(
                            client.socket, kHelloBytes, Later())),
                        .client_nonce = FreshNonce(),
                        .rank = 1};
    FrameCodec sealer(client.handshake, FrameCodec::kToServer);
    std::string bytes = client.handshake.MakeProof();
    bytes += sealer.Seal(
        StoreRequest{1, StoreRequest::kSet, "x", std::to_string(i)}.Encode());
    bytes[random() % bytes.size()] ^= 1 << random() % 8;
    SendAll(client.socket, bytes).IgnoreError();
    shutdown(client.socket.fd(), SHUT_WR);
    ReadToEnd(client.socket);
  }
  EXPECT_EQ(*store_->SetOnce("x", "untouched"), "untouched");
}

// Passes bytes on between a client and the server. One byte on the way, in one
// direction, is changed, left out or doubled.
class DamagingProxy {
 public:
  DamagingProxy(int server_port, bool to_server, size_t at, int damage)
      : listener_(*Listen(kHost, 0)),
        thread_([=, this] { Serve(server_port, to_server, at, damage); }) {}
  ~DamagingProxy() { thread_.join(); }
  int port() const { return LocalPort(listener_); }

 private:
  void Serve(int server_port, bool to_server, size_t at, int damage) {
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(listener_.fd(), &readable);
    select(listener_.fd() + 1, &readable, nullptr, nullptr, nullptr);
    const Socket client(accept(listener_.fd(), nullptr, nullptr));
    const Socket server = *ConnectTo(kHost, server_port, Later());
    std::thread forth([&] { Pass(client, server, to_server, at, damage); });
    Pass(server, client, !to_server, at, damage);
    forth.join();
  }
  static void Pass(const Socket& from, const Socket& to, bool damaged,
                   size_t at, int damage) {
    char chunk[4096];
    ssize_t got;
    size_t passed = 0;
    while ((got = recv(from.fd(), chunk, sizeof(chunk), 0)) > 0) {
      std::string bytes(chunk, got);
      if (damaged && at >= passed && at < passed + got) {
        char& byte = bytes[at - passed];
        if (damage < 8) byte ^= 1 << damage;
        if (damage == 8) bytes.erase(at - passed, 1);
        if (damage == 9) bytes.insert(at - passed, 1, byte);
      }
      passed += got;
      if (!SendAll(to, bytes).ok()) break;
    }
    shutdown(from.fd(), SHUT_RDWR);
    shutdown(to.fd(), SHUT_RDWR);
  }

  const Socket listener_;
  std::thread thread_;
};

TEST_F(StoreAttack, DamageOnTheWayIsNeverBelieved) {
  std::mt19937 random(13);
  int refused = 0;
  for (int i = 0; i < 200; ++i) {
    const std::string key = absl::StrCat("k", i);
    DamagingProxy proxy(server_->port(), i % 2, random() % 250, random() % 10);
    const auto store =
        Store::Connect(kHost, proxy.port(), kKey, 1, absl::Milliseconds(200));
    if (!store.ok()) {
      ++refused;
      continue;
    }
    // A byte too few can leave either side waiting for more.
    (*store)->Start(Store::Op::kSetOnce, key, "right",
                    [](absl::StatusOr<std::string> value) {
                      EXPECT_EQ(value.value_or("right"), "right");
                    });
    const auto got = (*store)->Get(key, absl::Milliseconds(200));
    EXPECT_EQ(got.value_or("right"), "right");
    if (!got.ok()) ++refused;
    EXPECT_EQ(*store_->SetOnce(key, "right"), "right");
  }
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace mimo
