using System;
using System.Net;
using System.Net.Sockets;
using System.Text;

// The smallest .NET application, without ASP.NET: it listens where ASPNETCORE_URLS says, as those with it do.
public static class Hello
{
    public static void Main()
    {
        string url = Environment.GetEnvironmentVariable("ASPNETCORE_URLS");
        int port = int.Parse(url.Substring(url.LastIndexOf(':') + 1));
        string body = "Hello from .NET " + Environment.Version + ", version "
            + Environment.GetEnvironmentVariable("BEANPOLE_VERSION") + "\n";
        byte[] answer = Encoding.UTF8.GetBytes("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: "
            + Encoding.UTF8.GetByteCount(body) + "\r\n\r\n" + body);
        var listener = new TcpListener(IPAddress.Any, port);
        listener.Start();
        Console.WriteLine("listening on port " + port);
        byte[] request = new byte[65536];
        while (true)
        {
            using (TcpClient client = listener.AcceptTcpClient())
            {
                NetworkStream stream = client.GetStream();
                try
                {
                    if (stream.Read(request, 0, request.Length) > 0)
                    {
                        stream.Write(answer, 0, answer.Length);
                    }
                }
                catch (System.IO.IOException)
                {
                }
            }
        }
    }
}
